// A browser starts no worker from a folder: there, the search of the site runs in a frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.worker = this;
      this.ready = new Promise((loaded) => { this.frame.onload = loaded; });
      const answer = "<script>postMessage = (data) => frameElement.worker.onmessage({ data });</script>";
      this.frame.srcdoc = `${answer}<script src="${new URL(url, location)}"></script>`;
      document.body.append(this.frame);
    }
    async postMessage(data) {
      await this.ready;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
