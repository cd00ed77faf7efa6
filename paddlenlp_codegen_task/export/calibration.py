"""Texts by which the scales of an 8-bit KV cache are set: of the kinds that CodeGen completes.

Changing them changes exports: raise onnx_files.GRAPH_VERSION with them.
"""

from __future__ import annotations

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

_START, _TOGETHER = 32, 512  # tokens

TEXTS = (
    '''import json
import os
from collections import defaultdict


class Cache:
    """Keeps the most recent values.

    Args:
        size (int): most entries.
    """

    def __init__(self, size=128, *, timeout=None):
        self.size = size
        self._entries = {}

    def get(self, key, default=None):
        try:
            value, expires = self._entries[key]
        except KeyError:
            return default
        if expires is not None and expires < time.time():
            del self._entries[key]
            return default
        return value


def count_words(path):
    # Count how often each word is in a file
    counts = defaultdict(int)
    with open(path, encoding="utf-8") as f:
        for line in f:
            for word in line.lower().split():
                counts[word.strip('.,;:!?"')] += 1
    return sorted(counts.items(), key=lambda item: -item[1])[:10]


if __name__ == "__main__":
    for word, n in count_words(sys.argv[1]):
        print("%-20s %6d" % (word, n))
''',
    """import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

df = pd.read_csv('train.csv', sep='\\t', index_col=0)
df['age'] = df['age'].fillna(df['age'].mean()).astype(np.float32)
X, y = df.drop(columns=['label']).values, df['label'].values
model = LogisticRegression(C=1e-3, max_iter=1000)
model.fit(X[:800], y[:800])
print(f"accuracy: {(model.predict(X[800:]) == y[800:]).mean():.3f}")
assert X.shape == (1000, 17), X.shape
""",
    """def test_parse_url(self):
    self.assertEqual(parse('http://user@localhost:8080/a/b?x=1&y=2#top').port, 8080)
    with self.assertRaises(ValueError):
        parse(None)

async def fetch(session, url, retries=3):
    async with session.get(url, headers={'User-Agent': 'Mozilla/5.0'}) as response:
        return await response.json()

SELECT = \"\"\"SELECT id, name, COUNT(*) FROM users
WHERE created_at >= '2021-03-04' AND email LIKE '%@example.com' GROUP BY name;\"\"\"
""",
    """#include <stdio.h>
#include <stdlib.h>
#define MAX(a, b) ((a) > (b) ? (a) : (b))

struct node { int key; struct node *next; };

/* Insert at the head of the list; NULL if there is no memory. */
static struct node *push(struct node **head, int key)
{
\tstruct node *n = malloc(sizeof(*n));
\tif (n == NULL)
\t\treturn NULL;
\tn->key = key & 0xFF;
\tn->next = *head;
\treturn *head = n;
}

int main(int argc, char **argv) {
    for (int i = 0; i < argc; ++i)
        printf("%d: %s\\n", i, argv[i]);
    return 0;
}
""",
    """package com.example.store;

import java.util.ArrayList;
import java.util.List;

public class OrderService implements Service<Order> {
    private static final Logger LOG = LoggerFactory.getLogger(OrderService.class);
    private final List<Order> orders = new ArrayList<>();

    @Override
    public synchronized void add(Order order) throws IllegalArgumentException {
        if (order == null || order.getTotal() < 0.0) {
            throw new IllegalArgumentException("order must not be null");
        }
        orders.add(order);
    }
}
""",
    """const express = require('express');
const app = express();

// Answer with the user of this id
app.get('/users/:id', async (req, res) => {
  const user = await db.collection('users').findOne({ _id: req.params.id });
  if (!user) return res.status(404).json({ error: 'not found' });
  res.send({ ...user, tags: (user.tags || []).map((t) => t.trim()) });
});

export default function Button({ onClick, children }) {
  return <button className="btn" onClick={() => onClick(true)}>{children}</button>;
}
""",
    """package main

import "fmt"

func (s *Stack[T]) Pop() (T, error) {
\tvar zero T
\tif len(s.items) == 0 {
\t\treturn zero, fmt.Errorf("stack is empty: %w", ErrEmpty)
\t}
\tlast := s.items[len(s.items)-1]
\ts.items = s.items[:len(s.items)-1]
\treturn last, nil
}
template <typename T>
std::vector<T> merge(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> out; out.reserve(a.size() + b.size());
  std::merge(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}
""",
    """The quick brown fox jumps over the lazy dog. In 2019, Dr. Smith et al. measured 12,345
samples (p < 0.05) and found -- to nobody's surprise -- no difference; see
https://example.org/a_b?c=d%20e.

# Installation

1. Run `pip install -r requirements.txt`
2. Edit **config.yaml**:

    server: {host: 0.0.0.0, port: 8000, debug: true}
    weights: [0.25, -1.5e-7, 3.14159, 1000000]

[x] xxxxxxxxxxxxxxxxxxxxxxxx !!!!! ======== \\\\ ~~ $HOME/.bashrc && exit 1
""",
)


def token_ids(tokenizer: Tokenizer, config: CodeGenConfig) -> list[list[int]]:
    """The texts for a model: how each begins a context, and all of them in one.

    Some 768 tokens in all: more take longer, and no fewer values were cut off with 2,700.
    """
    texts = [tokenizer.encode(text) for text in TEXTS]
    together = [token for text in texts for token in [*text, tokenizer.eos_token_id]]
    starts = [ids[:_START] for ids in texts]
    return [ids[: config.n_positions] for ids in (*starts, together[:_TOGETHER]) if ids]
