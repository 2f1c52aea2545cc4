"""text-generation-webui's extension: there the host is the engine, and `trifocal.model.composer` all that is needed.

``hooks`` is what the host calls, ``host`` what is asked of it, ``attached`` the pictures it keeps beside a
prompt, ``matching`` which tower and projector fit its model, and ``script`` the file that it imports.
"""

__all__: list[str] = []
