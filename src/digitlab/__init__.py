"""digitlab: experiments with minibatch k-means and a convolutional autoencoder on MNIST."""


class RunFailed(RuntimeError):
    """A run ended without results; its results.json and train.log say why, and so did the terminal."""


class Busy(RunFailed):
    """Another process works on the run."""
