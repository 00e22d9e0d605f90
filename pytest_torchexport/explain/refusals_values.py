"""What exporters refuse of what goes into a model, comes out of it, or stands in it: containers, objects, arrays."""

from __future__ import annotations

from pytest_torchexport.explain.known_refusal import RETURN, SIGNATURE, Known

_TENSORS_ONLY = "Return tensors only, and let the caller keep the rest"
_NOT_SCRIPTED = "If a module that was scripted stands in this model, use the module itself, without torch.jit.script."

_OUTPUTS = (
    Known(
        r"Encountering a (dict|list) at the output of the tracer",
        "the model returns a {0}, which jit.trace takes only when it is told that its form never changes",
        "Use Trace(strict=False).",
        at=RETURN,
    ),
    Known(
        r"Only tensors, lists, tuples of tensors, or dictionary of tensors can be output from traced functions",
        "the model returns something that is no tensor",
        f"{_TENSORS_ONLY}; or use the script backend, which returns numbers, strings and None too.",
        at=RETURN,
    ),
    Known(
        r"of traced region cannot be understood by the tracer",
        "the model returns a dict that holds something else than tensors and tuples of them: None, a number, a list",
        "Leave what is None or no tensor out of the dict, and make its lists tuples.",
        at=RETURN,
    ),
    Known(
        r"serialize TreeSpec of (?:a )?namedtuple class <class '[^']*?(\w+)'>",
        "the model takes or returns the namedtuple {0}, which torch.export does not save without a name for it",
        "Use a plain tuple or a dict; or give it a name once, before the export: "
        'torch.utils._pytree._register_namedtuple({0}, serialized_type_name="{0}").',
        at=RETURN,
    ),
    Known(
        r"Tracer cannot infer type of \w+\(\w+=",
        "the model returns an object of a class, and jit.trace allows tensors in tuples, lists and dicts",
        "Return a tuple or a dict of tensors.",
        at=RETURN,
    ),
    Known(
        r"Dictionary inputs to traced functions must have consistent type|Tracer cannot infer type of",
        "the dicts and lists that go in or come out hold values of several types, and jit.trace allows one",
        "Put tensors of one kind into a dict or list, use a tuple for the others, or use the script backend.",
        at=RETURN,
    ),
    Known(
        r"traced function didn't return any values",
        "the model returns nothing, and a trace keeps only what leads to a result",
        "Return the tensor that forward changes.",
        at=SIGNATURE,
    ),
    Known(
        r"Found <class '[^']*?(\w+)'> in output, which is not a known type",
        "the model returns an object of the class {0}, which torch.export does not know",
        "Return a tuple or dict of tensors; or register the class, a dataclass by "
        "torch.export.register_dataclass({0}).",
        at=RETURN,
    ),
    Known(
        r"Unsupported input type <class '[^']*?(\w+)'>",
        "an argument is an object of the class {0}, which torch.export does not know",
        "Pass tensors, numbers, tuples, lists and dicts of them; or register the class, a dataclass by "
        "torch.export.register_dataclass({0}).",
        at=SIGNATURE,
    ),
    Known(
        r"error when deserializing the saved file",
        "the saved program cannot be read back, as it holds a value that is no tensor and no number",
        f"{_TENSORS_ONLY}.",
        at=RETURN,
    ),
    Known(
        r"AssertionError: \[TensorBox\(",
        "Inductor cannot return what is no tensor and no number",
        f"{_TENSORS_ONLY}.",
        at=RETURN,
    ),
    Known(
        r"output \d+ \((.*?)\s+\[ torch\.\w+\{\} \]\) of traced region did not have observable data dependence",
        "the model returns the constant {0}, which does not depend on its inputs",
        f"{_TENSORS_ONLY}.",
        at=RETURN,
    ),
    Known(
        r"Only tuples, lists and Variables are supported as JIT inputs/outputs.*unsupported type: (\w+)",
        "an object of the class {0} goes in or comes out, and a traced program takes tensors in tuples and lists",
        "Pass and return tensors, tuples, lists and dicts of them.",
        at=RETURN,
    ),
    Known(
        r"cannot be traced\. Only Tensors",
        way_out="Pass tensors, or use the script backend, which takes numbers, strings and None.",
        at=SIGNATURE,
    ),
    Known(
        r"Cannot insert a Tensor that requires grad as a constant",
        "a parameter is used that the module does not know as its own: a layer in a plain Python list or dict, say",
        "Put layers into nn.ModuleList or nn.ModuleDict, and a single tensor into nn.Parameter.",
    ),
    Known(
        r"not part of the active trace\. Modules that are called during a trace must be registered",
        "a module that was scripted before stands in this model, and the legacy exporter cannot look into it",
        "Use the module itself, without torch.jit.script.",
    ),
    Known(
        r"Modules that have backward hooks assigned can't be compiled|Module-level backwards hooks require",
        "a module has a backward hook, and exported programs have none",
        "Remove the hook for the export: handle.remove().",
        at=r"\bself\.\w+\(",
    ),
    Known(
        r"\w+\.forward\(\) takes \d+ positional arguments? but \d+ were given",
        "the exporter calls forward with more positional arguments than it takes",
        "Make keyword-only arguments positional: forward(self, x, scale=2.0) without the `*`.",
        at=SIGNATURE,
        ways=dict.fromkeys(("export", "aoti", "onnx"), _NOT_SCRIPTED),
    ),
)

_NUMPY = (
    Known(
        r"\.numpy\(\) is not supported for tensor subclasses|call .*numpy.* on a (Fake|Functional)Tensor",
        "the model leaves torch for NumPy, which the exporter cannot follow",
        "Use torch's function of the same name.",
    ),
    Known(
        r"cannot create weak reference to 'numpy\.\w+' object",
        "the model calls NumPy, which TorchScript cannot compile",
        "Use torch's function of the same name.",
        at=r"\bnp\.|\bnumpy\.",
    ),
    Known(
        r"Unknown type name '(np|numpy)[.\w]*'",
        "the line names a NumPy type, and TorchScript knows torch.Tensor, numbers, str, List, Dict, Tuple and Optional",
        "Ask for torch.Tensor only, and make tensors of arrays before the call.",
    ),
)

VALUES = (*_OUTPUTS, *_NUMPY)
