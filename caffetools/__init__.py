"""caffetools: Caffe models keep training, converting and shipping, with the numbers that Caffe itself gives."""

__version__ = "0.1.0"


def install_as_caffe(*, force: bool = False) -> None:
    """Make ``import caffe`` mean :mod:`caffetools.pycaffe` in this process.

    Args:
        force: Do so also where a real Caffe is installed.

    Raises:
        CaffeToolsError: a real Caffe is installed, and ``force`` is not set.
    """
    from caffetools.pycaffe.install import install_as_caffe as install

    install(force=force)
