"""Measure Demo Portrait: what edits changed in the portraits of the demo model, by its attribute probe."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..core.charts import bar_chart, require_matplotlib
from .demo_model import CATEGORY, readable_weights
from .errors import with_advice
from .inputs import check_inputs
from .measure_reports import picture_names, plotted, rounded_all
from .pictures import image_of, one_picture, picture_of
from .progress import show_line


class MeasureDemo(io.ComfyNode):
    """What edits changed in the portraits of the demo model, attribute by attribute."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_MeasureDemo",
            display_name="Measure Demo Portrait",
            category=CATEGORY,
            description="Reads every attribute of drawn portraits before and after an edit: only for the demo model.",
            search_aliases=["attribute probe", "attribute", "leakage", "measure edit"],
            inputs=[
                io.Image.Input("image", tooltip="The portrait before the edit."),
                io.Image.Input("edited", tooltip="The edited portrait, or a batch of them."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="A chart of the change of each attribute."),
                io.String.Output(display_name="report", tooltip="Every attribute before and after, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, image, edited) -> io.NodeOutput:
        """Read both by the probe, compare, and draw a bar for every attribute and picture."""
        check_inputs(cls, locals())
        require_matplotlib()
        image = one_picture(image)
        from ..demo.measures import Reader, changes
        from ..demo.world import SIZE

        with readable_weights():
            reader = Reader()
        before, after = (reader.read([picture_of(one) for one in pictures]) for pictures in (image, edited))
        found = changes(before, after)
        report = {
            "stage": "measure",
            "summary": _attributes_summary(found),
            "pictures": len(edited),
            "attributes": {
                name: {
                    "unit": change.unit,
                    "before": change.before if isinstance(change.before, str) else round(change.before, 4),
                    "after": [value if isinstance(value, str) else round(value, 4) for value in change.after],
                    "change": rounded_all(change.change),
                }
                for name, change in found.items()
            },
        }
        if any(tuple(pictures.shape[1:3]) != (SIZE, SIZE) for pictures in (image, edited)):
            report["remarks"] = [f"The probe reads portraits of {SIZE} x {SIZE} pixels; these were resized to that."]
        shown = plotted(len(edited))
        rows = [(_attribute_label(name, change), rounded_all(change.change[shown])) for name, change in found.items()]
        plot = image_of(
            bar_chart(
                rows,
                title="What the edit changed in the portrait",
                axis="standard deviations; for glasses, hat and classes, probability",
                limits=_even_limits(rows),
                series=picture_names(shown),
            )
        )
        show_line(report["summary"])
        return io.NodeOutput(plot, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


def _attributes_summary(found: dict) -> str:
    """What changed most in the last picture, in words."""
    order = sorted(found, key=lambda name: -abs(found[name].change[-1]))
    said = [f"{_attribute_label(name, found[name])} {found[name].change[-1]:+.2f}" for name in order[:3]]
    which = "" if len(found[order[0]].change) == 1 else " in the last picture"
    return f"Changed most{which}: {', '.join(said)}."


def _attribute_label(name: str, change) -> str:
    """An attribute in words; of classes also the one before, whose probability it is."""
    words = name.replace("_", " ")
    return f"{words}: {change.before}" if isinstance(change.before, str) else words


def _even_limits(rows: list[tuple[str, list[float | None]]]) -> tuple[float, float]:
    """An axis to both sides as far as the values need, at least to 1, in whole numbers."""
    most = max((abs(value) for _, values in rows for value in values if value is not None), default=0.0)
    end = float(max(1, -int(-most // 1)))
    return -end, end


NODES = [MeasureDemo]
