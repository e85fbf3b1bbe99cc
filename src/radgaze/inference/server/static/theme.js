// Runs before the page is drawn, so that a dark room never sees a light flash.
try {
  const chosen = localStorage.getItem("radgaze-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is switched off: the system's choice stands.
}
