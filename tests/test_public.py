"""What is public says its types, and what is of the method shows by an example how it is used."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import amdim_tf

MODULES = [
    name
    for _, name, package in pkgutil.walk_packages(amdim_tf.__path__, "amdim_tf.")
    if not package and not name.endswith(("__main__", "c_api"))
]
METHOD = (
    "amdim_tf.data.geometry",
    "amdim_tf.data.views",
    "amdim_tf.data.preprocess",
    "amdim_tf.encoders.",
    "amdim_tf.objectives.",
    "amdim_tf.training.labels",
    "amdim_tf.training.model",
    "amdim_tf.training.optimizer",
)


def public(module):
    """{name: function or class} that `module` defines, without methods."""
    return {
        name: each
        for name, each in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(each) or inspect.isclass(each))
        and each.__module__ == module.__name__
    }


def functions(name, each):
    """(name, function) of a function, or of the methods of a class that are its own."""
    if inspect.isfunction(each):
        yield name, each
        return
    # What a dataclass makes has the types of its fields.
    made = hasattr(each, "__dataclass_fields__")
    for key, member in vars(each).items():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        own = not key.startswith("_") or (key == "__init__" and not made)
        if own and inspect.isfunction(member):
            yield f"{name}.{key}", member


def untyped(function):
    """Names of the parameters without a type, and "return"."""
    parameters = [*inspect.signature(function).parameters.values()]
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    missing = [each.name for each in parameters if each.annotation is each.empty]
    returns = inspect.signature(function).return_annotation
    if returns is inspect.Signature.empty and function.__name__ != "__init__":
        missing.append("return")
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_public_signatures_have_types(name):
    module = importlib.import_module(name)
    found = [pair for key, each in public(module).items() for pair in functions(key, each)]
    assert not {key: untyped(each) for key, each in found if untyped(each)}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(METHOD)])
def test_the_method_has_examples_that_run(name):
    module = importlib.import_module(name)
    for key, each in public(module).items():
        assert ">>>" in (each.__doc__ or ""), key
    for test in doctest.DocTestFinder().find(module):
        failed, _ = doctest.DocTestRunner().run(test, clear_globs=False)
        assert not failed, test.name
