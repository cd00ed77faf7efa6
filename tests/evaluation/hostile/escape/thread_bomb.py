"""Starts threads without end."""

import threading
import time

threading.stack_size(32768)
try:
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
    print("escaped")
except RuntimeError:
    print("held")
