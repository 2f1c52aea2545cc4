// Builds the page into the Python package: one script, one style sheet, one page, and a digest of the sources.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "../src/trifocal/web/static");
const sources = join(here, "src");

export function digest() {
  const hash = createHash("sha256");
  const files = readdirSync(sources).sort().map((name) => join(sources, name));
  for (const file of [...files, join(here, "package-lock.json"), join(here, "build.mjs")]) {
    hash.update(relative(here, file).replaceAll("\\", "/") + "\n");
    hash.update(readFileSync(file));
  }
  return hash.digest("hex");
}

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({
  // formulas and colours are files of their own, loaded when an answer has some
  entryPoints: ["main.ts", "math.ts", "colours.ts", "app.css"].map((name) => join(sources, name)),
  entryNames: "[name]",
  splitting: true,
  outdir: out,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "inline",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(sources, name), join(out, name));
writeFileSync(join(out, "BUILD.txt"), digest() + "\n");
