"""The executable edition of "A study on the plasticity of neural networks" (arXiv 2106.00042)."""

__version__ = "0.1.0"
