"""Find which settings are read, by inferring from annotations of what class each value is.

Classes and functions are known by name. A container counts as its elements, a branch as all its
sides: what a name may be is a set of class names.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
Classes = frozenset[str]
NOTHING: Classes = frozenset()
LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.cmpop, ast.alias)
SAME = {"cast", "check", "copy", "deepcopy", "enumerate", "list", "load_config", "replace"}
SAME |= {"sorted", "tuple", "zip"}
"""Functions whose result is of their arguments' classes; so are those that return a TypeVar."""


class Reads:
    """Hold what the sources declare, and every (class, attribute) that they read."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self.bases: dict[str, set[str]] = defaultdict(set)
        self.declared: dict[tuple[str, str], list[ast.expr]] = defaultdict(list)
        self.inferred: dict[tuple[str, str], Classes] = defaultdict(frozenset)
        self.returns: dict[str, list[ast.expr]] = defaultdict(list)
        self.aliases: dict[str, list[ast.expr]] = defaultdict(list)
        self.variables: set[str] = set()
        self.found: set[tuple[str, str]] = set()
        trees = list(trees)
        for tree in trees:
            self._declare(tree)
        for _ in range(2):  # what a method stores in self is known in the second round
            for tree in trees:
                self._visit(tree, {}, "")

    def of(self, name: str, attribute: str) -> bool:
        """Tell whether the attribute of a class is read: on it, a base or a subclass of it."""
        return any(
            read == attribute and (name in self._line(owner) or owner in self._line(name))
            for owner, read in self.found
        )

    @functools.cache  # noqa: B019 - one object per run
    def _line(self, name: str) -> list[str]:
        """Return a class and what it inherits from."""
        return [name, *(b for base in self.bases.get(name, ()) for b in self._line(base))]

    def _declare(self, tree: ast.Module) -> None:
        for node in tree.body:
            if isinstance(node, Function) and node.returns:
                self.returns[node.name].append(node.returns)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, is_variable = node.targets[0].id, "TypeVar" in _names(node.value)
                self.variables |= {name} if is_variable else set()
                self.aliases[name] += [] if is_variable else [node.value]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.bases[node.name] |= {n for base in node.bases for n in _names(base)}
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        self.declared[node.name, item.target.id].append(item.annotation)
                    elif isinstance(item, Function) and item.returns:
                        self.declared[node.name, item.name].append(item.returns)

    def _annotated(self, annotations: Iterable[ast.expr | None]) -> Classes:
        return NOTHING.union(*(self._named(one) for one in annotations if one is not None))

    @functools.cache  # noqa: B019 - one object per run
    def _named(self, annotation: ast.expr) -> Classes:
        """Return the classes that an annotation names, itself or by another name of theirs."""
        names = set(_names(annotation))
        others = [one for name in names - self.bases.keys() for one in self.aliases.get(name, ())]
        names |= {n for one in others if not isinstance(one, ast.Call) for n in _names(one)}
        return frozenset(names & self.bases.keys())

    def _attribute(self, classes: Classes, attribute: str) -> Classes:
        keys = [(name, attribute) for owner in classes for name in self._line(owner)]
        declared = [one for key in keys for one in self.declared.get(key, ())]
        stored = [self.inferred[key] for key in keys if key in self.inferred]
        itself = classes if any("Self" in _names(one) for one in declared) else NOTHING
        return self._annotated(declared).union(itself, *stored)

    def _classes(self, node: ast.AST | None, scope: dict[str, Classes]) -> Classes:
        """Return the classes that an expression's value may be of."""
        if isinstance(node, ast.Name):
            return scope.get(node.id, NOTHING)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._classes(node.value, scope), node.attr)
        if isinstance(node, ast.Call):
            return self._called(node, scope)
        if isinstance(node, ast.Lambda | ast.Constant | ast.Compare | None):
            return NOTHING
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            scope = self._comprehended(node, scope)
        parts = [self._classes(child, scope) for child in ast.iter_child_nodes(node)]
        return NOTHING.union(*parts)

    def _called(self, node: ast.Call, scope: dict[str, Classes]) -> Classes:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
            method = self._attribute(self._classes(node.func.value, scope), name)
            if name in ("items", "values", "get", "pop"):
                method |= self._classes(node.func.value, scope)
            if method:
                return method
        if name in self.bases:
            return frozenset({name})
        results = self.returns.get(name, [])
        variables = {one for result in results for one in _names(result)} & self.variables
        if name not in SAME and not variables:
            return self._annotated(results)
        given = self._annotated(node.args) | self._annotated(results)
        return given.union(*(self._classes(argument, scope) for argument in node.args))

    def _comprehended(self, node: ast.AST, scope: dict[str, Classes]) -> dict[str, Classes]:
        scope = dict(scope)
        for part in getattr(node, "generators", ()):
            self._bind(part.target, self._classes(part.iter, scope), scope)
        return scope

    def _bind(self, target: ast.AST, classes: Classes, scope: dict[str, Classes]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = scope.get(target.id, NOTHING) | classes
        elif isinstance(target, ast.Attribute):
            for owner in self._classes(target.value, scope):
                self.inferred[owner, target.attr] |= classes
        elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
            for child in ast.iter_child_nodes(target):
                self._bind(child, classes, scope)

    def _visit(self, node: ast.AST, scope: dict[str, Classes], owner: str) -> None:
        """Follow the statements in order, and note every attribute that is read."""
        if isinstance(node, LEAVES):
            return
        if isinstance(node, Function) and node.name == "problems":
            return  # checking a setting is not using it
        if isinstance(node, ast.ClassDef):
            scope, owner = dict(scope), node.name
        elif isinstance(node, Function | ast.Lambda):
            scope = self._inside(node, scope, owner)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            scope = self._comprehended(node, scope)
        elif isinstance(node, ast.Assign | ast.NamedExpr):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._bind(target, self._classes(node.value, scope), scope)
        elif isinstance(node, ast.AnnAssign):
            given = self._annotated([node.annotation]) | self._classes(node.value, scope)
            self._bind(node.target, given, scope)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._bind(node.target, self._classes(node.iter, scope), scope)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind(node.optional_vars, self._classes(node.context_expr, scope), scope)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            self.found |= {(name, node.attr) for name in self._classes(node.value, scope)}
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope, owner)

    def _inside(
        self, node: Function | ast.Lambda, scope: dict[str, Classes], owner: str
    ) -> dict[str, Classes]:
        scope = dict(scope)
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for position, argument in enumerate(every):
            is_self = position == 0 and argument.arg in ("self", "cls")
            itself = frozenset({owner}) if is_self else NOTHING
            scope[argument.arg] = self._annotated([argument.annotation]) | itself
        return scope


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names in an annotation, those inside quotes too."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, ast.Constant) and str(child.value).isidentifier():
            yield str(child.value)
