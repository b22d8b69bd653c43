"""Pictures as bytes in one S3 bucket, and the keys they have there. Knows boto3; knows no job, no lease, no HTTP.

Meant for every S3 server, the plainest included: what a picture is stands in SQL and in its key's extension, so no
metadata, tag, ACL, conditional put or listing is relied upon.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched, islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from darkroom.config import Settings
from darkroom.errors import ObjectNotFound, StorageError
