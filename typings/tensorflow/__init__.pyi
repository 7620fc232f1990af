# Instead of the stubs that come with pyright, which lack many operators.
from typing import Any

def __getattr__(name: str) -> Any: ...
