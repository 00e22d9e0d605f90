"""What the exporters that capture a graph refuse in a model: torch.export, AOTInductor, torch.compile, ONNX."""

from __future__ import annotations

from pytest_torchexport.explain.known_refusal import SIGNATURE, Known

_COND = "Write it as torch.cond, or compute both sides and choose by torch.where"
_SCRIPTED = "put it into a function under @torch.jit.script, which keeps Python branches and loops"
_NUMBER = "Keep it a tensor: most of torch's functions take a 0-d tensor where a number stands"
_FULLGRAPH = "do without fullgraph=True, which lets Python run it between two graphs"

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

_COMPILE = (
    Known(
        r"trace_autograd_ops",
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
        r"Attempted to wrap sparse Tensor",
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

CAPTURED = (*_BRANCHES, *_SIZES, *_OPERATORS)
COMPILED = _COMPILE
