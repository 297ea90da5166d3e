"""digitlab: experiments with minibatch k-means and a convolutional autoencoder on MNIST."""


class RunFailed(RuntimeError):
    """A run ended without its results; why is in its results.json and train.log, and has been said."""


class Busy(RuntimeError):
    """Another process works on the run."""
