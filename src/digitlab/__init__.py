"""digitlab: experiments with minibatch k-means and a convolutional autoencoder on MNIST."""


class RunFailed(RuntimeError):
    """A run ended without results, and has said why on the terminal and in results.json."""


class Busy(RunFailed):
    """Another process works on the run."""
