"""Where completions in the languages with braces end; see `marked_code` for the marks."""

import pytest
from marked_code import check, check_from_anywhere

from paddlenlp_codegen_task.truncation import Truncator

LANGUAGES = ["c", "cpp", "java", "javascript", "go"]

# The prompt opens a function.
OPEN = [
    (
        "c",
        r"""
static struct node *find(struct node *n, int x) {«
    while (n) {
        if (n->x == x) { return n; }  // a }
        n = n->next; /* }
        } */
    }
    log("}\"}", '}', '\'', "\\");
    struct point p = {1, {2, 3}};
    return NULL;
}»

int main(void)
""",
    ),
    (
        "c",
        r"""
#define OPEN { \
    {
#include <stdio.h>
int f(int a)
{«
#define LOOP(n) for (int i = 0; i < n; i++) { \
    step(i);
#if defined(A)
    if (a) {
#elif defined(B)
    if (a > 1) {
#else
    while (a) {
#if C
        a--;
#endif
#endif
        a--;
    }
#if A
    if (a) {
#if C
        a--;
#endif
#else
    if (a > 1'000) {
#endif
    }
    return a;
}»
int g
""",
    ),
    ("c", 'extern "C" {\nint f(void) {« return 1; }»\nint g(void);\n}'),
    (
        "cpp",
        r"""
namespace a::b {
template <class T>
class Foo : public Bar<T> {
 public:
  explicit Foo(int a) : Bar<T>(a), y_{a}, z_{"}"} {«
    auto f = [&](int x) -> int { return x + 1'000'000; };
    std::vector<int> v{1, 2, 3};
    s = R"(})" R"x()" } )")x" LR"({)" "R" ERR"}";
    for (auto& x : v) {
      try { x = f(x); } catch (...) { throw; }
    }
  }»

  int x() const { return x_; }
};
""",
    ),
    ("cpp", "auto f(int a) noexcept -> std::vector<int> {« return {a, 1}; }»\nint x;"),
    ("cpp", "class A {\n  auto f() const -> const T& {« return t; }»\n  int x;\n};"),
    ("cpp", "class A {\n  int f() && {« return 1; }»\n  int g() &;\n};"),
    ("cpp", "Foo& Foo::operator=(const Foo& o) {«\n  return *this;\n}»\n\nint x;"),
    ("cpp", "TEST(Foo, Bar) {«\n  EXPECT_EQ(1, 1);\n}»\n\nTEST(Foo, Baz) {}"),
    (
        "java",
        r'''
import java.util.*;

class Solution {
    private int[] sizes = {1, 2};

    /** It's {@code x}. */
    @SuppressWarnings({"a", "b"})
    public <T extends Comparable<T>> List<T> f(List<T> xs) throws A, B {«
        for (T x : xs) {
            if (x != null && ok(x, '}', '"')) {
                run(() -> { go(); });
            } else {
                stop(new Runnable() { public void run() { } });
            }
        }
        String s = """
            } "quoted" \""" }
            """ + "" + "}";
        return xs;
    }»

    public int g() { return 1; }
}
''',
    ),
    ("java", "enum Op {\n  PLUS {\n    int f(int a) {« return a; }»\n  };\n}"),
    ("java", "record P(int x, int y) {\n  int sum() {« return x + y; }»\n  int z() { }\n}"),
    ("java", "class A {\n  static {«\n    run();\n  }»\n  int f() {}\n}"),
    (
        "javascript",
        r"""
class Stack extends mixin(Base) {
  state = { items: [] };
  constructor(x) {«
    super({ x, y: { z: 1 } });
    this.re = /[/}"]\/'}{/g;
    this.half = x / 2; // }
    this.text = `a } ${x ? `{${{ a: "}" }.a}` : '}'} $ \` {`;
    items.map((item) => { return /}/.test(item); });
    items.map((item) => /}/.test(item));
  }»

  get size() { return 1; }
}
""",
    ),
    ("javascript", "const add = async (a, b) => {«\n  return a + b;\n};»\n\nconst x = 1;"),
    ("javascript", "const f = function () {«\n  return this;\n}.bind(this);»\n\nrun();"),
    ("javascript", "const fs = [function () {« return 1; }»,\n  function () {}];"),
    (
        "javascript",
        r"""
function escape(s) {«
  const rules = [
    [/{{/g, '('],
    /`/,
  ];
  return s.replace(
      /["'{]/g,
      (x) => typeof x && /}/.test(x)
        ? /{/ : x
        / 2 / 3);
}»

escape('');
""",
    ),
    # A function with a name, within the one around a module or a test.
    ("javascript", "(function () {\n  function f(a) {« return () => { g(a); }; }»\n  f();\n})();"),
    ("javascript", "(() => {\n  let a = 1\n  async function f(a) {« if (a) { b(); } }»\n})();"),
    ("javascript", "!function () {\n  x();\n  function f() {« y(); }»\n  function b() {}\n}();"),
    ("javascript", "+function ($) {\n  $.x = function () {« y(); }»\n  $.y = 1;\n}($);"),
    ("javascript", "d(function () {\n  const h = (a) => (b) => {« a(b); };»\n  h();\n});"),
    ("javascript", "d(function () {\n  f(a ? b(1) : function (c) {« c(); });\n});»\nd();"),
    ("go", "func\n(a *A) f() int {«\n\treturn 1\n}»\n\nfunc g() {}"),
    ("go", "var x = 1 +\n\t2\n\nfunc f() {«\n\tg()\n}»\n\nfunc g() {}"),
    ("java", "enum E {\n  A() {\n    int f() {« return 1; }»\n    int g() { return 2; }\n  };\n}"),
    ("java", "enum E {\n  A(1) { int f() { } },\n  B(2) {\n    int f() {« }»\n    int g() {}\n};}"),
    ("java", "enum E {\n  A, @X(1) B(2) {\n    int f() {« }»\n    int g() {}\n  };\n}"),
    ("java", "enum E {\n  A(1);\n  E(int x) {« this.x = x; }»\n  int f() { }\n}"),
    ("java", "class C {\n  C(int x) {« this.x = x; }»\n  int f() { }\n}"),
    ("javascript", "$(function () {\n  $.fn.x = function () {«\n    y();\n  };»\n  z();\n});"),
    ("javascript", "define(['a'], (a) => {\n  const f = async (b) => {« b(); };»\n  f();\n});"),
    ("javascript", "define({}, function () {\n  return {\n    f: function () {« }»,\n  };\n});"),
    ("javascript", "test('a', () => {\n  use(function done() {« x(); });\n});»\nrun();"),
    ("javascript", "function f() {\n  const g = () => {« return 1; };\n  return g;\n}»\nf();"),
    ("javascript", "module.exports = {\n  a: 1,\n  run(x) {« return { x }; }»,\n  stop() {}\n};"),
    ("javascript", "module.exports = {\n  run: function (x) {« if (x) {} }»,\n};"),
    ("javascript", "const o = {\n  f: (x) => {« return x; }»,\n};"),
    ("javascript", "export default {\n  data() {« return { a: 1 }; }»,\n};"),
    ("javascript", "app.get('/', (req, res) => {«\n  res.send(1);\n});»\n\napp.listen(80);"),
    ("javascript", "setTimeout(function () {« tick(); }, 100);»\nrun();"),
    ("javascript", "(function ($) {«\n  'use strict';\n})(jQuery);»\nrun();"),
    ("javascript", "useEffect(() => {«\n  run();\n}, [a, b]);»\nrun();"),
    ("javascript", "fetch(a).then((b) => {« return b; }).catch(log).then(run)»\nrun()"),
    ("javascript", "const html = `<p>${xs.map((x) => {« return x; })»}</p>`;\nrun();"),
    (
        "go",
        r"""
package main

func (s *Stack) Push(x interface{}, fs ...func() error) (n int, err error) {«
	if y := s.f(x); y != nil {
		return 0, nil
	}
	a := []struct{ x rune }{{'}'}, {'\''}, {'"'}}
	b := `}\` + "}\"" // }
	go func() {
		defer s.done(map[string]interface{}{"a": 1})
	}()
	return 1, nil
}»

func main() {
""",
    ),
    ("go", "func f() (map[string]interface{}, struct{}) {«\n\treturn nil, struct{}{}\n}»\nvar x"),
    ("go", "func Map[K comparable](\n\ta K,\n) (\n\tint,\n) {«\n\treturn 1\n}»\nvar x"),
]

# Nothing that runs is open where the prompt ends.
BEFORE = [
    ("c", "// add«\nint add(int a, int b) {\n  return a + b;\n}»\n\nint sub"),
    ("c", "int add(int a,« int b)\n{\n  return a + b;\n}»\n\nint sub"),
    (
        "c",
        """#include <a.h>
«struct point { int x; };
enum color { RED, GREEN };
typedef struct { int x; } box;
static const struct ops ops = { .run = run, .sizes = { 1, 2 } };
int sizes[] = { 1, 2 }, n;
struct point p = (struct point){ 1 };
int f(void);
struct point *g(void) {
  return &p;
}»

int h(void) {
""",
    ),
    ("c", "struct point {«\n  int x;\n};»\n\nint f(void) {"),
    ("c", "typedef struct node {«\n  int x;\n} Node, *NodePtr;»\n\nint f(void) {"),
    ("c", "typedef enum { RED,« GREEN } color;»\n\nint f(void) {"),
    ("c", "struct a {«\n  int x;\n} __attribute__((packed)), b[2];»\n\nint f(void) {"),
    ("c", "int sizes[] = {« 1, 2 };\nint f(void) { return 1; }»\n\nint g(void) {"),
    ("c", "/* Don't {« } */\nint f() { return 1; }»\nint g"),
    ("cpp", "class A {\n  int x_{0};\n«  int x() const& override { return x_; }»\n  int y();"),
    ("cpp", "// box«\ntemplate <class T>\nstruct Box { T t; T get() { return t; } };»\nint x;"),
    ("cpp", "// max«\ntemplate <class T> T max(T a, T b) { return a; }»\nint x;"),
    ("cpp", "«namespace a {\nint f() { return 1; }\nint g() { return 2; }\n}»  // a\nint x;"),
    ("cpp", "«std::vector<int> v{1, 2};\nauto f = [](int a) { return a; };»\nint x;"),
    ("java", "// Say hello«\npublic class Main {\n  void f() { }\n  void g() { }\n}»\n\nclass B {"),
    ("java", "class A {\n  private int x;\n«\n  A(int x) {\n    this.x = x;\n  }»\n\n  int f() {"),
    (
        "java",
        "class A {«\n  enum B { C, D }\n  int[] e = new int[] {1};\n  void f() { }»\n  int g;",
    ),
    ("java", "class A {«\n  Runnable r = () -> { run(); };»\n  int x;\n}"),
    ("java", "interface A {«\n  int f();\n  int g();\n}»\n\nclass B {"),
    ("java", "class A {«\n  int x;\n\n\n  void f() { }»\n  int y;"),
    ("java", "class A {«\n  B b = new B() {\n    int c() { return 1; }\n  };»\n  int y;"),
    ("java", "class A {«\n  B b = new B() {\n    int c() { return 1; }\n  }.d();»\n  int y;"),
    ("java", "record P(int x) {«\n}»\n\nclass B {"),
    ("java", "record P(«int x) {\n  int f() { return x; }\n}»\nclass B {"),
    (
        "javascript",
        """// sum
«const { a, b } = require("x"), c = [{ a: 1 }];
import { d } from 'y'
export { d, a }
const options = { a: 1, b: { c: 2 } };
const ratio = a / b / 2
function sum({ a, b } = {}) {
  return { a };
}»

sum();
""",
    ),
    ("javascript", "«module.exports = {\n  run(x) { return x; },\n  stop() {}\n};»\nrun();"),
    ("javascript", "«setTimeout(() => { tick(); }, 100);»\nrun();"),
    ("javascript", "«const a = class { f() {} };»\nrun();"),
    ("javascript", "// in a line«\nfor (const x of xs) {\n  run(x);\n}»\nrun();"),
    (
        "go",
        """package main
«
import (
	"fmt"
)

type Point struct {
	x int
	f func() interface{}
}

type Shape interface {
	Area() float64
}

var area func(Shape) float64

var points = []Point{
	{1, nil},
	{x: 2},
}

// main says hello
func main() {
	fmt.Println("hello")
}»

func f() {
""",
    ),
    ("go", "type Point struct {«\n\tx int\n}»\n\nfunc f() {"),
    # Tables of tests.
    ("go", "var a = []struct {« x int }{\n\t{1},\n}\n\nfunc f() {\n}»\nvar b"),
    ("go", "// a\n«var a = []struct{ x int }{{1}}\n\nfunc f() {\n}»\nvar b"),
    ("go", 'var a = map[string]func() int{«\n\t"b": c,\n}\n\nfunc f() {\n}»\nvar b'),
    ("go", "var a = []b{{func() {}, []int{« 1}}}\n\nfunc f() {\n}»\nvar c"),
    ("go", "var a = b(func() struct{} {«\n\treturn c\n})»\nvar b"),
    # Code that never opens a function ends at two blank lines.
    ("c", "#define A 1«\n\n\n\nint x;\n\nint y;»\n\n\nint z;"),
    ("javascript", "const x =« 5;\n\nrun(x);»\n\n\nrun();"),
]

# What a slash, a brace or `<` is depends on the code before it.
JAVASCRIPT = [
    "function f(a) {« return typeof /}/; }»\ng();",
    "function f(a) {« if (a) /{/.exec(b); }»\ng();",
    "function f(a) {« while (g(a)) /[/{]/.exec(b); return a }»\ng();",
    "function f(a) {« for await (const b of c) /{/.exec(b) }»\ng();",
    "function f(a) {« a++ / 2; b = '{' / 3; }»\ng();",
    "function f(a) {« return (a) / 2 + b[0] / 3 /* { */; }»\ng();",
    "function f(a) {« a = b\n/ 2; x.return / '{' / 2; 1. / 2; }»\ng();",
    "function f(a) {« { b } /{/.test(a); a = +/}/; case /}/: }»\ng();",
    "function f(a) {« x.if(a) / '}' / 2; ifs(a) / '}' / 2 }»\ng();",
    "function f(a) {« return a ? /[}\\]]/ : b && /\\/}/g; }»\ng();",
    "function f(a) {« return [.../}/.exec(a), a => /}/]; }»\ng();",
    "function f(a) {« return `${a / 2}${`}${/}/}`}` / 2; }»\ng();",
    "function f(a) {« return <p>it's {a} `</p>; }»\ng();",
    'function f(a) {« return <a href="\'{" b={c} d>{e ? <b/> : <i>}</i>} `</a>; }»\ng();',
    "function f(a) {« return (\n  <>\n    don't {/* ' */}\n\n\n  </>\n); }»\ng();",
    "const f = (a) => {« return a < b ? c : d > '{'; };»\ng();",
    "const f = (a) => {« return a.map(b => <li key={b} on={() => { h(b) }}>'{b}</li>); };»\ng();",
    'const f = <T,>(a) => {« return "}" };»\ng();',
    'const f = <T extends U>(a) => {« return "}" };»\ng();',
    'const f = <Type>(a) => {« return "}" };»\ng();',
    "#!/usr/bin/env node '{\nfunction f(a) {« return a }»\ng();",
    "\ufefffunction f(a) {« return a }»\ng();",
]

# Blocks that run outside any function, and code whose beginning is not in the prompt.
FRAGMENTS = [
    ("javascript", "if (a) {« b(); } else if (c) { d(); }\nelse { e(); }»\nrun();"),
    ("javascript", "try {« a(); } catch (e) { b(); } finally { c(); }»\nrun();"),
    ("javascript", "try {« a(); } catch { b(); }»\nrun();"),
    ("javascript", "if (a) {« b(); }»\n\nelsewhere();"),
    ("javascript", "if (a) {« b(); }» c();"),
    ("java", "    try (A a = b()) {«\n      c();\n    } catch (E e) {\n    }»\n    x();"),
    ("java", "    if (x > 0) {«\n      return 1;\n    } catch (E e) {\n    }»\n    x();"),
    ("go", "if err := f(); err != nil {«\n\treturn err\n}»\nfoo()"),
    ("go", "for {« x() }»\nfoo()"),
    ("go", "if err != nil {«\n\treturn err\n} else {\n\tx()\n}»\nfoo()"),
    ("c", "  int x = 1;«\n  return x;\n}»\n\nint f(void) {"),
    ("java", "  x = f(1, (2,« 3);\n  }»\n\n  int f() {"),
    ("cpp", "int f() { g((1;« }»\nint g"),
]


@pytest.mark.parametrize(("language", "marked"), OPEN)
def test_ends_with_the_function_of_the_prompt(language: str, marked: str):
    check_from_anywhere(language, marked)


@pytest.mark.parametrize(("language", "marked"), BEFORE)
def test_ends_with_the_first_function(language: str, marked: str):
    check(language, marked)


@pytest.mark.parametrize(("language", "marked"), FRAGMENTS)
def test_fragments(language: str, marked: str):
    check(language, marked)


@pytest.mark.parametrize("language", LANGUAGES)
def test_is_decided_one_character_later(language: str):
    truncator = Truncator(language)
    prompt = "func f(a int) int {" if language == "go" else "int f(int a) {"
    assert truncator.decided("\n  return a;\n}", prompt) is None  # ";" may follow
    assert truncator.decided("\n  return a;\n}\n", prompt) == "\n  return a;\n}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_keeps_what_is_not_finished(language: str):
    truncator = Truncator(language)
    assert truncator.truncate("\n  if (a) {\n  }\n ", "func f(a) {") == "\n  if (a) {\n  }"
    assert truncator.truncate("") == ""
    scanner = truncator.scanner("func f(a) {")
    scanner.feed(" if (a) { b } els")
    assert scanner.settled == " if (a) { b } els"


@pytest.mark.parametrize("marked", JAVASCRIPT)
def test_javascript_depends_on_the_code_before(marked: str):
    check_from_anywhere("javascript", marked)
