from repro.sweep import machine  # noqa: F401 - before PyTorch, whose OpenMP may bind this thread to one core
