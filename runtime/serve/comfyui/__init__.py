"""Nodes for ComfyUI: this folder, or a link to it, is what lies in ``custom_nodes``.

ComfyUI runs this file and reads the two tables. The nodes are those of the installed package.
"""

from flowblending.runtime.serve.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
