from tests.inferers.conftest import tokenizer

__all__ = ["tokenizer"]
