"""ARMD language models at scale: pretraining, conversion, decoding and evaluation."""

__version__ = "0.1.0"
