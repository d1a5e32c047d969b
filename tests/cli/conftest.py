from tests.inferers.conftest import checkpoint

__all__ = ["checkpoint"]
