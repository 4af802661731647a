"""`python scripts/tfidf_floor.py` prints the accuracy that a model of text should be above: tf-idf and logistic regression.

It learns from all training texts of a corpus at once, by words and pairs of words, and names the class of its test texts. Nothing is drawn
at random.
"""

import argparse
import os
import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from cl_framework.benchmarks.text.corpora import CORPORA, FOLDERS
from cl_framework.errors import ConfigurationError

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("corpus", nargs="?", default="clinc150", choices=sorted(CORPORA), help="as in benchmark.corpus (default: clinc150)")
parser.add_argument("folder", nargs="?", type=Path, help="where its files lie (default: below CL_DATA)")
parser.add_argument(
    "--weak", type=float, default=10.0, help="inverse of the penalty, scikit-learn's C, whose default there is 1 (default: 10)"
)
options = parser.parse_args()

name = options.corpus
try:
    corpus = CORPORA[name](options.folder or Path(os.environ.get("CL_DATA", "data")) / FOLDERS.get(name, name))
except ConfigurationError as error:
    sys.exit(f"tfidf_floor: {error}")
model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=options.weak, max_iter=300))
model.fit(*zip(*corpus.train, strict=True))
accuracy = 100 * model.score(*zip(*corpus.test, strict=True))
print(f"{name}: {accuracy:.2f} percent of {len(corpus.test):,} test texts, {len(corpus.labels)} classes, from {len(corpus.train):,} texts")
