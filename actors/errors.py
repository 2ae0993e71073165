"""Errors of a model or a device, defined without torch, so that the driver and the queue can distinguish them."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class ModelError(Exception):
    """The model can't be loaded or can't generate what the recipe requests; the message is one line."""


class ModelNeedsMemory(ModelError):
    """The model could not be loaded for lack of memory: a retry may succeed a moment later, or on another node."""


class DeviceLost(Exception):
    """This process can't use its device any more, whatever it is given: another process must take over."""


class DeviceUnfit(DeviceLost):
    """The device, or its node, can't generate at all: found out before any prompt is at stake."""
