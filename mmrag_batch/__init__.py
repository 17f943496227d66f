"""mmrag-batch: a batch job that answers visual questions with retrieved evidence.

Importing this package loads no torch, transformers, onnxruntime, vllm or pandas.
"""

__version__ = "0.1.0"
