"""The pipeline of a folder in diffusers' layout: samples of a model of lowerbound."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image


class LowerboundPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of a model of any family; of the same seed, prompts and options those of `jobs.sample`."""

    def __init__(self, model: Any):
        super().__init__()
        self.register_modules(model=model)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_images: int = 1,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        **options: Any,
    ) -> ImagePipelineOutput:
        """`output_type`: pil, or pt for uint8 levels [N, C, H, W]. `options`: those of `trainer.sample`."""
        import trainer
        from trainer.images import pictured

        model = self.model.model
        given = {"steps": num_inference_steps, "guidance": guidance_scale, "prompt": prompt}
        options |= {name: value for name, value in given.items() if value is not None}
        images = trainer.sample(model, num_images, seed=seed, **options)
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        shown = pictured(images, model.spec.levels).permute(0, 2, 3, 1).cpu().numpy()
        grey = shown.shape[3] == 1
        return ImagePipelineOutput(images=[Image.fromarray(image[..., 0] if grey else image) for image in shown])
