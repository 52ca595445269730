// Before anything is painted: the theme asked for by the address (#theme=dark), or the reader's last choice.
(function () {
  var asked = /[#?&]theme=(dark|light)/.exec(location.hash + location.search);
  var kept = null;
  try { kept = localStorage.getItem("pplscape-theme"); } catch (e) { /* a file:// page may not store anything */ }
  var theme = asked ? asked[1] : kept;
  if (theme) document.documentElement.dataset.theme = theme;
})();
