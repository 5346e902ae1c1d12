"""ARMD language models at scale: pretraining, conversion from AR weights, decoding and evaluation."""

__version__ = "0.1.0"
