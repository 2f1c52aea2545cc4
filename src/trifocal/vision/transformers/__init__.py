"""The vision halves of transformers' own models: their towers, projectors and processors.

For families of LLaVA's design that need no class here: rows are what the model's ``get_image_features`` gives, and
what stands around and between them is what its processor writes. A family that no test of ours knows is held against
transformers' own forward pass when it is loaded (`probe`).
"""

from trifocal.vision.transformers.processors import count
from trifocal.vision.transformers.vision import TransformersVision, load_transformers

__all__ = ["TransformersVision", "count", "load_transformers"]
