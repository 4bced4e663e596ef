"""Makes `report_run`, the synthetic run beside this file, importable by the report's tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
