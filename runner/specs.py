"""What a node class declares, read once and in one way: inputs, types, widgets; and the same as /object_info would say it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEED_NAMES = ("seed", "noise_seed")  # an INT of this name gets the front end's "control after generate" widget

NodeClasses = Mapping[str, type]
Graph = dict[str, dict[str, Any]]  # API format: node id -> {"class_type", "inputs", "_meta"}


@dataclass(frozen=True)
class InputSpec:
    """One entry of INPUT_TYPES. `type` is "COMBO" for a list of choices, which `choices` then holds."""

    name: str
    type: str
    required: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Any, ...] | None = None
    declared: Any = None  # the type as the class wrote it

    @property
    def is_widget(self) -> bool:
        """Has the front end a widget for it, so that a literal is its natural value?"""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def takes_literal(self) -> bool:
        """May a bare literal stand in the file? Sockets of custom types want a link."""
        return self.type == "*" or any(part in WIDGET_TYPES for part in self.type.split(","))

    @property
    def has_control(self) -> bool:
        """Does the front end store an extra "fixed"/"randomize" value after this widget?"""
        named = self.type == "INT" and self.name in SEED_NAMES
        return self.is_widget and bool(self.options.get("control_after_generate", named))

    @property
    def has_upload(self) -> bool:
        """Does the front end store an extra value for an upload button?"""
        return self.is_widget and any(self.options.get(f"{kind}_upload") for kind in ("image", "video", "audio"))

    @property
    def default(self) -> Any:
        """What the front end fills in: the default, else the first choice, else the type's empty value."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices is not None:
            return self.choices[0] if self.choices else ""
        return {"INT": self.options.get("min", 0), "FLOAT": self.options.get("min", 0.0), "BOOLEAN": False}.get(self.type, "")


def read_inputs(node_class: Any) -> dict[str, InputSpec]:
    """Name -> spec, required inputs first, in the order of INPUT_TYPES (that is the order of the widgets too)."""
    declared = node_class.INPUT_TYPES()
    specs: dict[str, InputSpec] = {}
    for section in ("required", "optional"):
        for name, entry in declared.get(section, {}).items():
            kind = entry[0] if isinstance(entry, (tuple, list)) else entry
            options = entry[1] if isinstance(entry, (tuple, list)) and len(entry) > 1 else {}
            choices = None
            if isinstance(kind, (list, tuple)):
                choices, name_of_type = tuple(kind), "COMBO"
            else:
                name_of_type = str(kind)
                if name_of_type == "COMBO":
                    choices = tuple(options.get("options", ()))
            specs[name] = InputSpec(name, name_of_type, section == "required", options, choices, kind)
    return specs


def read_hidden(node_class: Any) -> dict[str, str]:
    """Hidden input -> what it asks for (UNIQUE_ID, PROMPT, ...)."""
    return {
        name: str(entry[0] if isinstance(entry, (tuple, list)) else entry)
        for name, entry in node_class.INPUT_TYPES().get("hidden", {}).items()
    }


def attribute(node_class: Any, name: str, default: Any) -> Any:
    """An optional declaration of the V1 node protocol (OUTPUT_NODE, INPUT_IS_LIST, ...)."""
    return getattr(node_class, name, default)


def accepts_any_input(node_class: Any) -> bool:
    """Does FUNCTION take **kwargs?"""
    parameters = inspect.signature(getattr(node_class, node_class.FUNCTION)).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def is_link(value: Any) -> bool:
    """`["node id", output index]`; literal lists are wrapped as {"__value__": [...]}."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def unwrap(value: Any) -> Any:
    """The literal inside {"__value__": ...}, or the literal itself."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


def object_info(node_classes: NodeClasses, display_names: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What ComfyUI's GET /object_info would say about these classes."""
    names = display_names or {}
    described: dict[str, dict[str, Any]] = {}
    for class_type, node_class in node_classes.items():
        inputs = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
        outputs = list(attribute(node_class, "RETURN_TYPES", ()))
        info: dict[str, Any] = {
            "input": inputs,
            "input_order": {section: list(entries) for section, entries in inputs.items()},
            "output": outputs,
            "output_is_list": list(attribute(node_class, "OUTPUT_IS_LIST", [False] * len(outputs))),
            "output_name": list(attribute(node_class, "RETURN_NAMES", outputs)),
            "name": class_type,
            "display_name": names.get(class_type, class_type),
            "description": attribute(node_class, "DESCRIPTION", ""),
            "python_module": node_class.__module__.rpartition(".")[2],
            "category": attribute(node_class, "CATEGORY", "sd"),
            "output_node": attribute(node_class, "OUTPUT_NODE", False) is True,
        }
        for key in ("OUTPUT_TOOLTIPS", "DEPRECATED", "EXPERIMENTAL"):
            if attribute(node_class, key, None):
                info[key.lower()] = attribute(node_class, key, None)
        described[class_type] = info
    return described
