from mmrag_batch.api import Bundle as Bundle
from mmrag_batch.api import evaluate as evaluate
from mmrag_batch.api import open_bundle as open_bundle
from mmrag_batch.api import predict as predict
from mmrag_batch.api import read_answers as read_answers

__version__: str
