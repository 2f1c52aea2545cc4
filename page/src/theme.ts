// Light or dark: what the system says, until somebody chooses.

import { icon, iconButton } from "./dom";
import { read, write } from "./choices";

const THEME = "trifocal.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark(): boolean {
  const chosen = read(THEME);
  return chosen ? chosen === "dark" : dark.matches;
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
}

export function themeButton(): HTMLButtonElement {
  const button = iconButton("moon", "Dark", () => {
    write(THEME, isDark() ? "light" : "dark");
    applyTheme();
    draw();
  });
  const draw = (): void => {
    const label = isDark() ? "Light colours" : "Dark colours";
    button.replaceChildren(icon(isDark() ? "sun" : "moon"));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  dark.addEventListener("change", () => {
    applyTheme();
    draw();
  });
  draw();
  return button;
}
