// The theme: the system's, unless the reader chooses; the choice is kept where the browser allows it.
{
  const themes = ["auto", "light", "dark"];
  const root = document.documentElement;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "theme";

  function show(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  }

  function kept() {
    try {
      const theme = localStorage.getItem("moat-theme");
      return themes.includes(theme) ? theme : "auto";
    } catch {
      return "auto";
    }
  }

  button.addEventListener("click", () => {
    const theme = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % themes.length];
    try {
      localStorage.setItem("moat-theme", theme);
    } catch {
      // Private windows may refuse: the choice then lasts as long as the page.
    }
    show(theme);
  });
  show(kept());
  document.querySelector("header .wide").append(button);
}
