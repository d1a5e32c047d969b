"""Models for programs that have neither this package nor its training code: graphs of ONNX or ``torch.export``."""
