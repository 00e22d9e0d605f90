"""Refusals that are known: how an exporter words them, what they mean in the user's terms, and what helps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RETURN = r"^\s*return\b"
"""The line at which what the model returns is to be seen."""
SIGNATURE = r"^\s*(async )?def forward\b"


@dataclass(frozen=True)
class Known:
    """A refusal that is known.

    Attributes:
        pattern: what its text matches, the exception's type in front.
        plain: what it means, `{0}` standing for the pattern's first group; empty where the exporter says it well.
        way_out: what helps.
        at: the line of forward to show where the exporter names none; `{0}` as above.
        ways: other ways out for certain backends.
    """

    pattern: str
    plain: str = ""
    way_out: str = ""
    at: str = ""
    ways: Mapping[str, str] = field(default_factory=dict)

    def way_for(self, backend: str) -> str:
        """The way out on a backend, by its name."""
        return self.ways.get(backend, self.way_out)


def known(text: str) -> tuple[Known, re.Match[str]] | None:
    """The first that fits the text of an exception, with what it matched."""
    found = ((one, re.search(one.pattern, text, re.DOTALL | re.IGNORECASE)) for one in KNOWN)
    return next(((one, match) for one, match in found if match is not None), None)


_COND = "Write it as torch.cond, or compute both sides and choose by torch.where"
_SCRIPTED = "put it into a function under @torch.jit.script, which keeps Python branches and loops"
_NUMBER = "Keep it a tensor: most of torch's functions take a 0-d tensor where a number stands"
_FULLGRAPH = "do without fullgraph=True, which lets Python run it between two graphs"
_TENSORS_ONLY = "Return tensors only, and let the caller keep the rest"
_COMPOSE = "Compose it of other operators, or take it out of the exported part"

_BRANCHES = (
    Known(
        r"Could not guard on data-dependent expression z(?:uf|f)\d+ *(?:$|\(|\n)",
        "a Python number is taken out of a tensor whose values are not known at export",
        f"{_NUMBER} (`x * x.max()` for `x * float(x.max())`, torch.sqrt for math.sqrt).",
        ways={"compile": f"{_NUMBER}; or {_FULLGRAPH}."},
    ),
    Known(
        r"Could not guard on data-dependent expression|Data-dependent branching|Dynamic control flow is not supported",
        "a Python branch or loop depends on the values of a tensor",
        f"{_COND}, a loop as torch.while_loop, an assertion as torch._check or outside of the model; or use the script "
        "backend, which keeps Python branches.",
        ways={
            "compile": f"{_COND}, a loop as torch.while_loop; or {_FULLGRAPH}.",
            "onnx": f"{_COND}, a loop as torch.while_loop; or {_SCRIPTED}, and use the onnx-torchscript backend.",
        },
    ),
    Known(
        r"Could not extract specialized|Unsupported Tensor\.item\(\)|data-dependent expression|data dependent op",
        "a Python number is taken out of a tensor whose values are not known at export",
        f"{_NUMBER}; for a number of elements, use a mask instead of a slice.",
        ways={"compile": f"{_NUMBER}; or {_FULLGRAPH}."},
    ),
)

_SIZES = (
    Known(
        r"specialized it to be a constant \((\d+)\)",
        "a dimension that dynamic_shapes declares as varying is fixed to {0} by the model's code",
        "Take the size from x.shape (or leave it to -1) instead of writing it as a number, or leave the dimension out "
        "of dynamic_shapes.",
    ),
    Known(
        r"The values of (\w+) = .*? and (\w+) = .*? must always be equal",
        "two dimensions that dynamic_shapes declares apart, {0} and {1}, have to be equal in the model",
        "Give both the same Dim.",
    ),
    Known(
        r"Not all values of .* satisfy the generated guard.*Suggested fixes:\s*(\w+ = (?![^\n]*\b_)[^\n]*)",
        "the model's code distinguishes sizes inside the range that dynamic_shapes declares",
        "Declare the dimension as {0}, or treat all sizes alike.",
    ),
    Known(
        r"Not all values of .* satisfy the generated guard",
        "the model's code distinguishes sizes inside the range that dynamic_shapes declares",
        "Narrow the range of the Dim, or treat all sizes alike.",
    ),
    Known(
        r"Must provide a tree_name when there might be a mismatch",
        "torch.export cannot bring dynamic_shapes and arguments that go into **kwargs together",
        "Name these arguments in the signature of forward.",
        at=SIGNATURE,
    ),
)

_OPERATORS = (
    Known(
        r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>",
        "the exporter has no translation of the operator {0}.{1} to ONNX",
        "Compose it of other operators, or supply it: Onnx(custom_translation_table={{torch.ops.{0}.{1}: function}}) "
        "with a function written in onnxscript.",
    ),
    Known(
        r"Exporting the operator '?(?:aten::)?(\S+?)'? to ONNX opset version (\d+) is not supported\. "
        r"Support for this operator was added in version (\d+)",
        "the operator {0} has no translation in opset {1}, only from opset {2} on",
        "Raise it: OnnxTorchScript(opset={2}).",
    ),
    Known(
        r"Exporting the operator '?(\S+?)'? to ONNX opset version (\d+) is not supported",
        "the legacy exporter has no translation of the operator {0} to ONNX opset {1}",
        "Use the onnx backend, which knows more operators, compose it of others, or supply it by "
        "torch.onnx.register_custom_op_symbolic.",
    ),
    Known(
        r"an operator with unrecognized namespace (\S+?)\.",
        "the legacy exporter has no translation of your own operator {0}",
        "Supply it by torch.onnx.register_custom_op_symbolic('{0}', symbolic, opset).",
    ),
    Known(
        r"Unsupported: ONNX export of operator ([^.]*?)\. Please",
        "the legacy exporter cannot translate the operator {0}",
        "Use the onnx backend, or compose it of other operators.",
    ),
    Known(
        r"STFT does not currently support complex types",
        "the legacy exporter cannot translate torch.stft with complex results",
        "Use the onnx backend, or return_complex=False.",
    ),
    Known(
        r"There was no fake impl registered for <CustomOpDef\(([\w:]+)\)>|(?:\b(\w+::\w+)).*no fake impl",
        "your own operator {0} does not say what its output looks like, which a program that is made without running "
        "it has to know",
        "Add a function that returns an empty tensor of the output's shape and dtype, under "
        "@torch.library.register_fake('{0}').",
    ),
    Known(
        r"Could not export Python function call '(?!<)(\w+)'",
        "the autograd function {0} is Python code, which TorchScript cannot save",
        "Compute what it does by torch's own operators, at least while torch.jit.is_tracing() or "
        "torch.jit.is_scripting() is true.",
        at=r"\b{0}\.apply\(",
    ),
    Known(
        r"Could not export Python function call '",
        "a function that forward calls is Python code, which TorchScript cannot save",
        "Write it so that TorchScript can compile it, or register it as an operator by torch.library.Library.",
    ),
    Known(
        r"Cannot access data pointer of Tensor|its data is not allocated yet",
        "the line reads the memory of a tensor, and while a program is captured tensors have none",
        "Do without data_ptr() and copy.deepcopy (use x.clone()), make tensors of tensors by torch.stack, and wrap "
        "kernels of your own as operators with torch.library.custom_op.",
    ),
    Known(
        r"not linked with support for (\w+) devices|Torch not compiled with (CUDA) enabled",
        "forward asks for a {0} device, which this build of torch does not have",
        "Take the device from an input: x.to(y.device).",
    ),
)

_ATTRIBUTES = (
    Known(
        r"has no attribute '(\w+)' \(This attribute exists on the Python module, but we failed to convert Python type: "
        r"'list'.*torch\.nn",
        "self.{0} is a plain list of modules, which TorchScript cannot take over",
        "Make it an nn.ModuleList.",
        at=r"\bself\.{0}\b",
    ),
    Known(
        r"has no attribute '(\w+)' \(This attribute exists on the Python module, but we failed to convert Python type: "
        r"'(\w+)'",
        "self.{0} is a Python {1} that TorchScript cannot take over: values of one type, known to it, are needed",
        "Use values of one type, or take what forward needs out of it in __init__: self.scale = options['scale'].",
        at=r"\bself\.{0}\b",
    ),
)

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
        r"output \d+ \((.*?) \[ torch\.\w+\{\} \]\) of traced region did not have observable data dependence",
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
        "the exporter passes positionally what forward takes by keyword only",
        "Make the argument positional: forward(self, x, scale=2.0) without the `*`; a module that was scripted before, "
        "hand in as it was.",
        at=SIGNATURE,
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

_SCRIPT = (
    Known(
        r"Yield aren't supported",
        "TorchScript has no generators",
        "Collect the values in a list and return that.",
        at=r"\byield\b",
    ),
    Known(
        r"Lambda aren't supported",
        "TorchScript has no lambdas",
        "Write it as a function with def, outside of forward.",
    ),
    Known(
        r"illegal target for annotation|Expected a single top-level function",
        "TorchScript cannot read the source of a lambda",
        "Write it as a function with def.",
    ),
    Known(
        r"Function definitions aren't supported",
        "TorchScript has no functions inside of functions",
        "Define it outside of forward, and pass what it uses as arguments.",
    ),
    Known(
        r"Try blocks aren't supported|Raise.*inside try",
        "TorchScript has no try blocks",
        "Test the condition with an if before the operation.",
    ),
    Known(r"(?:Set|SetComp) aren't supported", "TorchScript has no sets", "Use a list, or a dict with True as values."),
    Known(
        r"Global variables aren't supported|attribute lookup is not defined on python value of type 'list'",
        "TorchScript cannot use or change a global variable",
        "Keep it in the module as an attribute that __init__ sets, or pass it in.",
    ),
    Known(
        r"Import statements aren't supported",
        "TorchScript has no import inside of a function",
        "Import at the top of the file.",
    ),
    Known(
        r"Don't support formatting in JoinedStr",
        "TorchScript has f-strings, but no format specs in them",
        "Leave the `:...` out, or format outside of forward.",
    ),
    Known(
        r"can't take variable number of arguments or use keyword-only arguments with defaults",
        "TorchScript has no *args, no **kwargs and no defaults for keyword-only arguments",
        "Name every argument, `x: torch.Tensor, y: torch.Tensor`, or take a List[torch.Tensor].",
        at=SIGNATURE,
    ),
    Known(
        r"Keyword-arg expansion is not supported",
        "TorchScript cannot unpack a dict into keyword arguments",
        "Write the keywords out in the call.",
    ),
    Known(
        r"'Tensor' object has no attribute or method 'forward'",
        "TorchScript cannot call a method of the parent class through super()",
        "Move what the parent computes into a method of another name, and call that one: self.features(x).",
        at=r"\bsuper\(",
    ),
    Known(
        r"method '(\w+)' is called recursively",
        "the method {0} calls itself, which TorchScript cannot",
        "Write it as a loop.",
    ),
    Known(
        r"Tried to set nonexistent attribute: (\w+)",
        "forward stores into self.{0}, which __init__ does not make",
        "Make it in __init__, with the type that it will have: self.{0} = torch.zeros(0).",
    ),
    Known(
        r"Expected integer literal for index but got a variable",
        "TorchScript indexes a ModuleList by written numbers only",
        "Go through it: `for i, layer in enumerate(self.layers): if i == k: x = layer(x)`.",
    ),
    Known(
        r"strides\(\) called on an undefined Tensor|Type 'None'? .*cannot be cast to Tensor",
        "an argument is None in the example and has no annotation, so that TorchScript takes it for a Tensor",
        "Annotate it: mask: Optional[torch.Tensor] = None.",
        at=SIGNATURE,
    ),
    Known(
        r"\(inferred\)|was not annotated with an explicit type",
        "TorchScript takes an argument without annotation for a Tensor, and it is used as something else",
        "Annotate its type in the signature: n: int = 2.",
        at=SIGNATURE,
    ),
    Known(
        r"Expected type hint for result of tolist\(\)",
        "TorchScript needs to know what tolist() gives",
        "Annotate it: `sizes: List[int] = x.tolist()`.",
    ),
    Known(
        r"Empty lists default to List\[Tensor\]",
        way_out="A list that is made empty needs an annotation: `found: list[int] = []`.",
    ),
    Known(
        r"to unannotated dict key|Dict\[str, Tensor\] to List|aten::_set_item",
        "the keys or the values of a dict have several types, and TorchScript allows one",
        "Annotate the dict where it is made (`found: dict[str, int] = {{}}`), or use one dict for each type.",
    ),
    Known(
        r"Python builtin <built-in function (\w+)> is currently not supported in Torchscript",
        "TorchScript cannot call {0}",
        "Call it outside of forward, or in a method under @torch.jit.unused that does not run in the exported program.",
    ),
    Known(
        r"UnsupportedNodeError|NotSupportedError|is currently not supported in Torchscript|we failed to compile it",
        way_out="Rewrite the line, take it out of what is scripted, or mark the method with @torch.jit.unused.",
    ),
)

_COMPILE = (
    Known(
        r"trace_autograd_ops=False|torch\.autograd\.grad",
        "forward takes a gradient, which torch.compile does not trace",
        f"Take it by torch.func.grad; or {_FULLGRAPH}.",
    ),
    Known(
        r"copy\.deepcopy a tensor",
        "copy.deepcopy of a tensor is not traced",
        "Use x.clone().",
    ),
    Known(
        r"Dynamo does not support RNN, GRU, or LSTM|Attempted to wrap RNN",
        "torch.compile leaves nn.RNN, nn.GRU and nn.LSTM to eager",
        f"Set torch._dynamo.config.allow_rnn = True; or {_FULLGRAPH}.",
    ),
    Known(
        r"ScriptModule submodule|torch\.jit\.script/freeze modules unsupported",
        "a module that was scripted stands in this model",
        f"Use the module itself, without torch.jit.script; or {_FULLGRAPH}.",
    ),
    Known(
        r"sparse Tensors?",
        "the model makes a sparse tensor, which torch.compile does not trace",
        f"Use a dense one with a mask; or {_FULLGRAPH}.",
    ),
    Known(
        r"`torch\.compiler\.disable\(\)`d function",
        "forward calls a function that is under torch.compiler.disable, so that it cannot be in the graph",
        f"Take the decorator off; or {_FULLGRAPH}.",
    ),
    Known(
        r"trace builtin operator `(\w+)`",
        "torch.compile cannot trace {0}",
        f"Take it out of forward; or {_FULLGRAPH}.",
    ),
    Known(
        r"trace the (?:Python )?builtin `([\w.]+?)\.?`",
        "torch.compile cannot trace {0}",
        f"Take it out of forward; or {_FULLGRAPH}.",
    ),
    Known(
        r"marked that the function `(\w+)`",
        "torch.compile does not trace {0}",
        f"Call it before the model; or {_FULLGRAPH}.",
    ),
    Known(
        r"LoggingLoggerVariable",
        "torch.compile does not trace logging",
        f"Take it out of forward; or {_FULLGRAPH}.",
    ),
    Known(
        r"Failed to trace builtin operator|Attempted to call function marked as skipped|Graph break|\bUnsupported:",
        way_out=f"Take the line out of the compiled part; or {_FULLGRAPH}.",
    ),
)

KNOWN = (*_BRANCHES, *_SIZES, *_OPERATORS, *_ATTRIBUTES, *_OUTPUTS, *_NUMPY, *_SCRIPT, *_COMPILE)
"""First match wins, so the particular ones stand before the general ones."""
