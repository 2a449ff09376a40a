from checkpoint.conftest import one_thread  # noqa: F401
