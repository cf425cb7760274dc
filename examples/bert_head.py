r"""
A head on a Hugging Face BERT
=============================

The body of a language model is frozen, and a new head is trained on it. What is frozen costs no queries; and as all
queries of a step share the body's output, the body runs once a step, however many weights the head has.
"""

# %%
# The model and the texts
# -----------------------
# Yours comes from ``BertModel.from_pretrained(...)``. So that this page needs no download, a tiny one is pretrained
# here: a text is 16 of 80 words, a quarter of the vocabulary for each of four topics, and the body learns to tell the
# topic by autograd.

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

import deepzero as dz

torch.manual_seed(0)
tiny = {"vocab_size": 81, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def texts(count, seed, labels):
    """As a tokenizer gives them, of 8 to 16 words; each topic has a label."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randint(0, 4, (count,), generator=generator)
    words = torch.randint(1, 81, (count, 16), generator=generator)
    on_topic = torch.randint(1, 21, (count, 16), generator=generator) + 20 * topics[:, None]
    words = torch.where(torch.rand(count, 16, generator=generator) < 0.4, on_topic, words)
    mask = (torch.arange(16) < torch.randint(8, 17, (count, 1), generator=generator)).long()
    rows = zip(words * mask, mask, torch.tensor(labels)[topics], strict=True)
    return [{"input_ids": ids, "attention_mask": seen, "labels": label} for ids, seen, label in rows]


pretrained = BertForSequenceClassification(BertConfig(**tiny, num_labels=4))
optimizer = torch.optim.Adam(pretrained.parameters(), lr=3e-3)
for _ in range(8):
    for batch in DataLoader(texts(1024, seed=0, labels=[0, 1, 2, 3]), batch_size=64, shuffle=True):
        optimizer.zero_grad()
        pretrained(**batch).loss.backward()
        optimizer.step()

# %%
# The new task: topics 0 and 3 belong together, and so do 1 and 2. There are 256 labelled texts.

train = DataLoader(texts(256, seed=1, labels=[0, 1, 1, 0]), batch_size=32, shuffle=True)
test = DataLoader(texts(512, seed=2, labels=[0, 1, 1, 0]), batch_size=256)

# %%
# What you write
# --------------
# A batch is a dict, so the loss is a closure of the model and the batch: the one that the model computes itself. The
# test is a function of the model.

# [your lines]
model = BertForSequenceClassification(BertConfig(**tiny, num_labels=2))
model.bert = pretrained.bert.requires_grad_(False)  # the head alone is trained


def score(model):
    """Part of the test texts that are labelled correctly."""
    right = [(model(**batch).logits.argmax(1) == batch["labels"]).float() for batch in test]
    return {"accuracy": torch.cat(right).mean()}


zo = dz.CGE(model, closure=lambda model, batch: model(**batch).loss)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
trainer = dz.Trainer(model, zo, optimizer, train, test=score)
result = trainer.fit(epochs=8)
# [end]

# %%
# What came out
# -------------

trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
frozen = sum(p.numel() for p in model.parameters()) - trained
print(f"{trained} weights trained, {frozen:,} frozen; {zo.queries:,} queries in {result.summary['steps']} steps")
print(f"test accuracy {result.summary['test_accuracy']:.1%}")
print(zo.explain(next(iter(train))))

assert result.summary["test_accuracy"] > 0.8  # a guess is right in half of the cases
