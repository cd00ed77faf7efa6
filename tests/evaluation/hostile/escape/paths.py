"""Looks for paths of the harness's in modules, frames and all objects."""

import gc
import sys

seen = []
frame = sys._getframe()
while frame:
    seen += [frame.f_code.co_filename, *map(repr, frame.f_locals.values())]
    seen.append(repr(sorted(map(str, frame.f_globals.items()))))
    frame = frame.f_back
for module in list(sys.modules.values()):
    seen.append(str(getattr(module, "__file__", "")))
for thing in gc.get_objects():
    if isinstance(thing, (list, tuple)):
        seen += [text for text in thing if isinstance(text, str)]
    elif isinstance(thing, dict):
        seen += [text for text in thing.values() if isinstance(text, str)]
# It is given the wrong way round, so as not to be found where it is given.
harness = BACKWARDS[::-1]
print("escaped" if any(harness in text for text in seen) else "held")
