"""What goes wrong with a model, as errors that are known without torch: the driver and the queue tell them apart."""


class ModelError(Exception):
    """The model can't be loaded or can't draw what the recipe asks; the message is one line."""


class ModelNeedsMemory(ModelError):
    """The model could not be loaded for lack of memory: the same may work a moment later, or on another node."""
