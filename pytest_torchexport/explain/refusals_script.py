"""What TorchScript's compiler refuses in a model."""

from __future__ import annotations

from pytest_torchexport.explain.known_refusal import SIGNATURE, Known

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

ATTRIBUTES = _ATTRIBUTES
SCRIPTED = _SCRIPT
