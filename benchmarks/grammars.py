"""Where functions end in languages with braces, by their tree-sitter grammars; see parsers.py."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from parsers import Region


@dataclass(frozen=True)
class _Grammar:
    """What a tree-sitter grammar calls things.

    Attributes:
        functions: nodes with a block that runs when they are called; the block's names.
        classes: nodes between whose braces there are declarations.
        stops: nodes beyond which nothing closes together with what they hold.
        statements: blocks that run outside functions.
    """

    package: str
    functions: frozenset[str]
    bodies: frozenset[str]
    classes: frozenset[str]
    stops: frozenset[str]
    statements: frozenset[str] = frozenset()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_C_STOPS = _names(
    "translation_unit declaration_list field_declaration_list compound_statement initializer_list"
    " preproc_if preproc_ifdef preproc_else preproc_elif linkage_specification"
)
_GRAMMARS = {
    "java": _Grammar(
        "tree_sitter_java",
        _names(
            "method_declaration constructor_declaration compact_constructor_declaration"
            " lambda_expression static_initializer"
        ),
        _names("block constructor_body"),
        _names("class_body interface_body enum_body"),
        _names(
            "program class_body interface_body enum_body enum_body_declarations"
            " annotation_type_body block constructor_body array_initializer"
        ),
        _names("block"),
    ),
    "javascript": _Grammar(
        "tree_sitter_javascript",
        _names(
            "function_declaration function_expression generator_function arrow_function"
            " generator_function_declaration method_definition class_static_block"
        ),
        _names("statement_block"),
        _names("class_body"),
        _names(
            "program class_body statement_block object array template_substitution switch_body"
            " jsx_expression"
        ),
        _names("statement_block switch_body"),
    ),
    "go": _Grammar(
        "tree_sitter_go",
        _names("function_declaration method_declaration func_literal"),
        _names("block"),
        _names("struct_type interface_type"),
        _names("source_file block literal_value var_spec_list"),
    ),
    "c": _Grammar(
        "tree_sitter_c",
        _names("function_definition"),
        _names("compound_statement"),
        _names("declaration_list field_declaration_list"),
        _C_STOPS,
        _names("compound_statement"),  # of a macro that begins a function
    ),
    "cpp": _Grammar(
        "tree_sitter_cpp",
        _names("function_definition lambda_expression"),
        _names("compound_statement try_statement"),
        _names("declaration_list field_declaration_list"),
        _C_STOPS,
        _names("compound_statement"),  # of a macro that begins a function
    ),
}


@dataclass(frozen=True)
class _Block(Region):
    """A function or statement outside functions.

    Attributes:
        brace: where its block begins.
        callback: it is an argument, or called at once.
        named: it has a name, or is assigned, and counts within callbacks.
    """

    brace: int
    callback: bool
    named: bool


class TreeSource:
    """A file in a language with braces; see `Source`."""

    def __init__(self, language: str, text: str) -> None:
        self.text = text
        self._grammar = grammar = _GRAMMARS[language]
        self._stops = grammar.stops | {"ERROR"}
        self._encoded = text.encode()
        root = _parser(language).parse(self._encoded).root_node
        self.damaged = root.has_error
        self._blocks: list[_Block] = []
        self._classes: list[Region] = []
        self.functions: list[Region] = []
        self.left_out = 0
        for name, nodes in _captures(language, root).items():
            for node in nodes:
                if name == "function":
                    self._add_function(node)
                elif name == "class":
                    self._classes.append(self._block(node, node, node))
                elif not _is_within(node, grammar.functions | grammar.statements):
                    self._add_statement(node)
        self._blocks.sort(key=lambda block: (block.start, -block.end))

    def _add_function(self, node: Any) -> None:
        body = _body(node, self._grammar)
        if body is None:  # declared only, or an expression
            return
        block = self._block(node, body, node)
        self._blocks.append(block)
        if _is_understood(node, self._grammar):
            self.functions.append(block)
        else:
            self.left_out += 1

    def _add_statement(self, node: Any) -> None:
        statement = node
        while (around := statement.parent) and around.type not in self._stops:
            statement = around
        self._blocks.append(self._block(node, node, statement))

    @cached_property
    def _places(self) -> list[int] | None:
        """The byte offset of each character, if these differ."""
        if len(self._encoded) == len(self.text):
            return None
        places, at = [], 0
        for character in self.text:
            places.append(at)
            at += len(character.encode())
        return [*places, at]

    def _offset(self, byte: int) -> int:
        return byte if self._places is None else bisect_right(self._places, byte) - 1

    def _block(self, node: Any, body: Any, closes: Any) -> _Block:
        """What begins with `node`, its braces those of `body`, and ends with `closes`."""
        ends = set()
        around = closes
        while around is not None and around.type not in self._stops:
            end = self._offset(around.end_byte)
            ends.add(end)
            if semicolon := re.compile(r"\s*;").match(self.text, end):
                ends.add(semicolon.end())
            around = around.parent
        return _Block(
            self._offset(node.start_byte),
            self._offset(closes.end_byte),
            frozenset(ends or {self._offset(closes.end_byte)}),
            brace=self._offset(body.start_byte),
            callback=_is_callback(node),
            named=self._grammar.package == "tree_sitter_javascript" and _is_named(node),
        )

    def expected(self, cut: int) -> Region:
        """See `Source`."""
        around = [block for block in self._blocks if block.holds(cut)]
        if around[0].callback:
            for block in around[1:]:
                if block.named and block.brace < cut:
                    return block
                if not block.callback:
                    break
        return around[0]

    def others(self, cut: int) -> dict[str, list[Region]]:
        """See `Source`."""
        return {
            "another function around": [b for b in self._blocks if b.holds(cut)],
            "the class around": [b for b in self._classes if b.holds(cut)],
        }


def _is_within(node: Any, types: frozenset[str]) -> bool:
    around = node.parent
    while around is not None:
        if around.type in types:
            return True
        around = around.parent
    return False


def _is_understood(node: Any, grammar: _Grammar) -> bool:
    """Whether the parser found no error in a function nor in any around it."""
    around = node
    while around is not None:
        block = around.type in grammar.functions | grammar.statements
        if around.type == "ERROR" or (block and around.has_error):
            return False
        around = around.parent
    return True


def _body(node: Any, grammar: _Grammar) -> Any:
    for child in reversed(node.children):
        if child.type in grammar.bodies:
            return child
    return None


_ASSIGNMENTS = ("variable_declarator", "assignment_expression")


def _value(function: Any) -> Any:
    """A function, or the call of it in `x = function () {}()`."""
    call = function.parent
    if call is not None and call.type == "call_expression":
        called = call.child_by_field_name("function") == function
        return call if called else function
    return function


def _is_callback(node: Any) -> bool:
    value = _value(node)
    around = value.parent.type if value.parent else ""
    if value == node:
        return around in ("arguments", "argument_list", "parenthesized_expression")
    # Of `x = function () {` no prompt can tell that it will be called at once.
    return around not in (*_ASSIGNMENTS, "pair")


def _is_named(node: Any) -> bool:
    """Whether it has a name, or is assigned; an argument's or a method's name does not count."""
    if node.type == "method_definition" or _is_callback(node):
        return False
    if node.child_by_field_name("name") is not None:
        return True
    around = _value(node).parent
    if around is None:
        return False
    if around.type == "pair":
        return bool(node.type != "arrow_function")
    return around.type in _ASSIGNMENTS


@cache
def _language(language: str) -> Any:
    import tree_sitter  # for the languages with braces only

    return tree_sitter.Language(import_module(_GRAMMARS[language].package).language())


@cache
def _parser(language: str) -> Any:
    import tree_sitter

    return tree_sitter.Parser(_language(language))


def _captures(language: str, root: Any) -> dict[str, list[Any]]:
    """The nodes that count, by "function", "statement" and "class"."""
    return dict(_query(language).captures(root))


@cache
def _query(language: str) -> Any:
    import tree_sitter

    grammar = _GRAMMARS[language]
    sought = {
        "function": grammar.functions,
        "statement": grammar.statements,
        "class": grammar.classes,
    }
    source = [f"({node}) @{name}" for name, nodes in sought.items() for node in sorted(nodes)]
    return tree_sitter.QueryCursor(tree_sitter.Query(_language(language), "\n".join(source)))
