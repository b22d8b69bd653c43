"""The families of denoisers, one module each: what a pipeline holds, how it encodes, denoises and decodes."""

from darkroom_engine.quiet import quiet

# The first import of the pipelines prints advice about image processors that nothing here uses.
with quiet():
    from diffusers import StableDiffusionPipeline as StableDiffusionPipeline
