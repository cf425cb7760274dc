r"""
A head on a Hugging Face BERT
=============================

The body of a language model is frozen, and its head is trained. What is frozen costs no queries, and since all queries
of a step share the body's output, it is computed once a step, however many weights the head has.
"""

# %%
# The model and the texts
# -----------------------
# So that this page needs no download, the body is a small one with random weights, where yours would be
# ``BertForSequenceClassification.from_pretrained(...)``, and "texts" are 16 of 50 words. A text is positive if more of
# its words come from the first half of the vocabulary than from the second.

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

import deepzero as dz

logging.set_verbosity_error()
torch.manual_seed(0)
config = BertConfig(
    vocab_size=51, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.5
)
model = BertForSequenceClassification(config)


def texts(count, seed):
    """As a tokenizer gives them, with labels; texts have different lengths, and 0 fills the rest."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 51, (count, 16), generator=generator)
    mask = (torch.arange(16) < torch.randint(8, 17, (count, 1), generator=generator)).long()
    labels = (((words <= 25).long() * 2 - 1) * mask).sum(1) > 0
    return [
        {"input_ids": w * m, "attention_mask": m, "labels": y}
        for w, m, y in zip(words, mask, labels.long(), strict=True)
    ]


train, test = DataLoader(texts(512, seed=0), batch_size=64, shuffle=True), DataLoader(texts(256, seed=1), batch_size=256)

# %%
# What you write
# --------------
# A batch is a dict, so the loss is a closure of the model and the batch: what the model returns itself. The test is a
# function of the model.


# [your lines]
def loss(model, batch):
    return model(**batch).loss


def accuracy(model):
    with torch.no_grad():
        return {"accuracy": torch.cat([model(**b).logits.argmax(1) == b["labels"] for b in test]).float().mean()}


model.bert.requires_grad_(False)
zo = dz.CGE(model, closure=loss)
optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.05)
trainer = dz.Trainer(model, zo, optimizer, train, test=accuracy, out="run", model_file=None)
result = trainer.fit(epochs=10)
# [end]
print(result.summary)
print(zo.explain(next(iter(train))))
