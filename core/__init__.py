"""The mathematics of the pack: torch only, no ComfyUI import, works on any denoiser given as a function."""
