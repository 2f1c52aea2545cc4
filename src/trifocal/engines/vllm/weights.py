"""How vLLM's processes get our weights: as they are read here, under canonical names, and unpacked."""

from __future__ import annotations

from typing import Any

from trifocal.engines.language import open_language
from trifocal.engines.recipe import Recipe

__all__ = ["register"]


def register() -> None:
    """Makes ``load_format="trifocal"`` known to vLLM, which calls this in each of its processes, as a plug-in."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class Loader(BaseModelLoader):  # type: ignore[misc]  # vLLM tells no types here
        """Reads the weights that a recipe names."""

        def download_model(self, model_config: Any) -> None:
            """They are on this machine."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Gives the model each of its tensors."""
            recipe = Recipe.from_json(self.load_config.model_loader_extra_config["recipe"])
            weights = open_language(recipe).weights
            model.load_weights((name, weights[name]) for name in weights)

    register_model_loader("trifocal")(Loader)
