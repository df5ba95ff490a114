"""The door into ComfyUI. Library users import `alignsr.core` and never pay for the nodes.

ComfyUI loads this folder under its absolute path as module name and asks for the names below; pytest may load it with no
package at all, where relative imports cannot work.
"""

WEB_DIRECTORY = "./web"

if __package__:

    def __getattr__(name: str) -> object:
        """Load the nodes when ComfyUI (or anybody) first asks for them."""
        if name not in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from . import nodes
        except AttributeError as error:  # hasattr() would hide it and ComfyUI would skip the pack in silence
            raise ImportError(f"{__name__}: the nodes could not be imported: {error}") from error
        return getattr(nodes, name)
