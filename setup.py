"""Build steps that pyproject.toml cannot express: what a wheel has in other places than a checkout.

Decided here: the flows become `fractal_model.flows`, because a top-level package `flows` could
collide with another one in the user's environment. The files of a project folder, which
`fractal init` writes, become data of the package. `fractal_model.common.installation` finds both.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT_FILES = ("params.yaml", "dvc.yaml", ".gitignore", ".dvcignore")


class BuildWheel(build_py):
    """Builds the package with the flows and the project's files in it."""

    def get_module_outfile(self, build_dir, package, module):
        path = package if isinstance(package, list | tuple) else package.split(".")
        inside = ["fractal_model", *path] if path[0] == "flows" else path
        return super().get_module_outfile(build_dir, list(inside), module)

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in PROJECT_FILES:
                self.mkpath(str(self._project()))
                self.copy_file(name, str(self._project() / name), preserve_mode=False)

    def get_outputs(self, include_bytecode=True):
        files = [] if self.editable_mode else [str(self._project() / n) for n in PROJECT_FILES]
        return [*super().get_outputs(include_bytecode), *files]

    def _project(self):
        return Path(self.build_lib) / "fractal_model" / "project"


setup(cmdclass={"build_py": BuildWheel})
