"""Latent Directions: training-free attribute sliders for diffusion models in ComfyUI.

Nothing else is imported here, so that ComfyUI, pytest and an editable install can all load this folder as a package.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's ComfyExtension; ComfyUI calls this once while it loads custom nodes."""
    try:
        from .nodes import LatentDirectionsExtension
    except Exception:
        import logging

        # ComfyUI logs only the message of an error raised here, which rarely says where it came from.
        logging.exception("Latent Directions could not be loaded")
        raise
    return LatentDirectionsExtension()
