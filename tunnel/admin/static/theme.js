// Runs before the page is drawn, so that it never flashes in the wrong colours. A choice is kept; none follows the system.
"use strict";
(() => {
  const chosen = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
