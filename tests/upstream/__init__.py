"""transformers' own common tests, run on every architecture of the registry: `make upstream`.

The tests of the installed version come from its source distribution (`source.py`) and are imported as modules of this
package, `upstream.test_modeling_common` and so on; `stand_ins.py` holds what that distribution lacks. `cases.py` makes
their test classes out of the table of tiny models, `rows.py` says what upstream's tests need besides.
"""

from .source import TESTS, SourceUnavailable, download
from .stand_ins import stand_in


__path__.insert(0, str(TESTS))
if TESTS.is_dir():  # as in the processes that a test spawns, which import the tests and download nothing
    stand_in(TESTS)
