"""Deep Defense (Yan, Guo, Zhang, NeurIPS 2018) at ImageNet scale."""

__version__ = "0.1.0"
