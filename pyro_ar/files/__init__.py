"""Files of whatever was fitted: numbers as safetensors, the rest as JSON; loading runs no code of the file's."""

from pyro_ar.files.disk import load, save

__all__ = ["load", "save"]
